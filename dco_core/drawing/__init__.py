"""Every chart and sheet of pictures."""
