"""What goes wrong in a run: rules on its metrics, its devices and its end."""
