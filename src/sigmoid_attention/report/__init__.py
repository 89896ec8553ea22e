"""The comparison as an HTML page: `page.render` writes one self-contained file."""
