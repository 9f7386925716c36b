"""The connector API, by which bridges reach the network, and the server it runs on."""
