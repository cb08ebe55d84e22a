"""ledger_sum.py FILE: rows and sum of the database of ledger.py, asked from outside of it."""

import sqlite3
import sys

print(*sqlite3.connect(sys.argv[1]).execute("SELECT count(*), sum(amount) FROM entry").fetchone())
