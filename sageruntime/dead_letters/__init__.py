"""Dead letters: collected while a job runs, stored in a SQLite file, and replayed."""
