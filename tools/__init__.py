"""Programs around the notebooks: run the course; format, check and address them."""
