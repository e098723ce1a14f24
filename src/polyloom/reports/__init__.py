"""Layer 2: figures, tables, and the report page."""
