"""What a person looks at after a run: so far one HTML page, `page.render_page`."""
