"""What a result's folder holds, as pages and tables that are read."""
