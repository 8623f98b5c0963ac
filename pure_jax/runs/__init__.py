"""What experiment scripts share: settings, tasks, an open run, its loop."""
