"""Documents of the text of an image: pure writers of pages (hOCR, ALTO, PDF)."""
