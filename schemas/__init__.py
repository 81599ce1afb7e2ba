"""Wire formats: the event envelope, the events by family, the HTTP bodies. Imports only pydantic."""
