"""One file per published system; `attlas.catalog.registry` finds them."""
