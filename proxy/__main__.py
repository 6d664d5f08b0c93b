"""Temporary."""
import sys
from pathlib import Path
from proxy import app, config
sys.exit(app.serve(config.load(Path(sys.argv[-1]), {}, {})))
