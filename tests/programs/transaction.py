"""Transactions of SQLite that stay open: on disk in both journal modes, with their locks and journals, and in memory.

    open N      begins a transaction in each database and puts N more rows in
    commit      commits them; answers the number of rows of each database
    check       answers `ROWS SUM INTEGRITY` of each database, as the program itself sees it
"""

import sqlite3

import desk

databases = []
for name, mode in (("/scratch/rollback.sqlite", "delete"), ("/scratch/wal.sqlite", "wal"), (":memory:", "memory")):
    db = sqlite3.connect(name, isolation_level=None)
    (chosen,) = db.execute(f"PRAGMA journal_mode = {mode}").fetchone()
    assert chosen == mode, chosen
    db.execute("CREATE TABLE entry (id INTEGER PRIMARY KEY, amount INTEGER, note TEXT)")
    databases.append(db)
rows = 0
for words, answer in desk.commands():
    if words[0] == "open":
        new = range(rows + 1, rows + 1 + int(words[1]))
        rows = new[-1]
        for db in databases:
            db.execute("BEGIN IMMEDIATE")
            db.executemany("INSERT INTO entry VALUES (?, ?, ?)", ((id, id * 37 % 1009, f"note {id} " * 5) for id in new))
        answer(rows)
    elif words[0] == "commit":
        for db in databases:
            db.execute("COMMIT")
        answer(" ".join(str(db.execute("SELECT count(*) FROM entry").fetchone()[0]) for db in databases))
    else:
        found = []
        for db in databases:
            found += db.execute("SELECT count(*), sum(amount) FROM entry").fetchone()
            found += db.execute("PRAGMA integrity_check").fetchone()
        answer(" ".join(map(str, found)))
