"""Floor 0: the workspace. Layout, discovery, ids, settings, durable files, the database, the outbox.

Imports nothing of ours. Modules used by the supervisor (`durable`, `process`, `clock`) need the standard library only.
"""
