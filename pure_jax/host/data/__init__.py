"""Problems, demonstrations and labels, and the batches made of them."""
