"""The composition root: where the parts are put together into processes. Nothing imports this package."""
