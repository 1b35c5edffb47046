"""One script per figure or table: run -> csv, plot -> figures."""
