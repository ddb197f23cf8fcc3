"""HTTP to model servers: the package's client for direct connections, and the ``openai`` library behind a proxy.

`connection` is one connection, `client` pools connections and sends requests, `events` parses event streams, `proxied` uses
a proxy of the environment. The `EgressPolicy` decides which hosts may be reached.
"""
