"""What a run needs and costs on devices that need not be there."""
