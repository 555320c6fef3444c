"""Results for people: tables in a terminal, a page with plots, and the Markdown tables of the documents."""
