"""What is said on the wire: the envelope, the events by family, the HTTP bodies. Imports only pydantic."""
