"""What an executor needs to talk to its job bridge: fetch, send, receive, report progress."""
