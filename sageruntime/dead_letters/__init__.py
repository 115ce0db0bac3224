"""Dead letters: gathered while a job runs, kept in a SQLite file, looked at, and sent again."""
