"""A report of anything: `document` holds it as plain data; `terminal`, `markdown` and `html` write it down."""
