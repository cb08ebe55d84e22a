"""A SQLite database on disk, kept open: connection, cursor, prepared statements, temporary table and page cache
all live in the program. Journal mode is DELETE, where no file is locked between two transactions (in WAL mode
a lock is held as long as the database is open).

    insert N    N more rows in one transaction; answers the number of rows
    check       answers `ROWS SUM TEMPROWS INTEGRITY`
"""

import sqlite3

import desk

db = sqlite3.connect("/scratch/ledger.sqlite", isolation_level=None)
db.execute("PRAGMA journal_mode = DELETE")
db.execute("CREATE TABLE entry (id INTEGER PRIMARY KEY, amount INTEGER, note TEXT)")
db.execute("CREATE INDEX by_amount ON entry (amount)")
db.execute("CREATE TEMPORARY TABLE seen (id INTEGER)")
rows = 0
for words, answer in desk.commands():
    if words[0] == "insert":
        db.execute("BEGIN")
        for _ in range(int(words[1])):
            rows += 1
            db.execute("INSERT INTO entry VALUES (?, ?, ?)", (rows, rows * 37 % 1009, f"note {rows} " * 5))
            db.execute("INSERT INTO seen VALUES (?)", (rows,))
        db.execute("COMMIT")
        answer(rows)
    else:
        count, total = db.execute("SELECT count(*), sum(amount) FROM entry").fetchone()
        (seen,) = db.execute("SELECT count(*) FROM seen").fetchone()
        (integrity,) = db.execute("PRAGMA integrity_check").fetchone()
        answer(f"{count} {total} {seen} {integrity}")
