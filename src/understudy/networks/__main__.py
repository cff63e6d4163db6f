"""``python exported/detector photo.jpg``: print the detections of the exported student in the photo."""

import sys
from importlib import import_module
from pathlib import Path

folder = Path(__file__).resolve().parent
sys.path.insert(0, str(folder.parent))
import_module(folder.name).main(folder.parent, sys.argv[1:])
