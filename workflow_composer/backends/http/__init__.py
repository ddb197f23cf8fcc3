"""HTTP to models' servers: one client for every server that no proxy stands before, and the library's own for the others.

`connection` is one connection, `client` keeps them and sends requests, `events` reads event streams, `proxied` goes through
a proxy of the environment. Which hosts may be reached at all is the `EgressPolicy`'s to say.
"""
