"""Web demo and HTTP server."""
