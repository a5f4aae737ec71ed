"""One HTML page about models: what it shows, as plain values, and how that becomes bytes."""
