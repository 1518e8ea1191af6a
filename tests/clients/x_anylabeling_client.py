"""X-AnyLabeling's window with the service as its remote server, without a screen.

python x_anylabeling_client.py SERVICE KEY PHOTO; its settings go to the photograph's folder.
"""

import os
import sys
import time
from pathlib import Path

from anylabeling import config
from anylabeling.resources import resources  # noqa: F401 - icons
from anylabeling.views.mainwindow import MainWindow
from PyQt6 import QtCore, QtTest, QtWidgets

url, key, photo = sys.argv[1:]
settings = Path(photo).with_name(".xanylabelingrc")
settings.write_text(f"""auto_save: false
exif_scan_enabled: false
remote_server_settings: {{server_url: "{url}/adapters/x-anylabeling", api_key: "{key}"}}
""")
os.environ |= {"HOME": str(settings.parent), "QT_QPA_PLATFORM": "offscreen"}

config.current_config_file = str(settings)
app = QtWidgets.QApplication([])
window = MainWindow(app, config=config.get_config(str(settings), {}), filename=photo)
window.resize(1200, 800)
window.show()
view = window.labeling_widget.view
panel, canvas = view.auto_labeling_widget, view.canvas


def wait(condition):
    """Let the window work until a condition holds, and return its value."""
    until = time.monotonic() + 120
    while not (value := condition()):
        assert time.monotonic() < until, panel.model_status_label.text()
        app.processEvents()
    return value


def shapes(label):
    return [shape for shape in canvas.shapes if shape.label == label]


models = panel.model_manager.model_configs
(remote,) = (one["config_file"] for one in models if one["name"].startswith("remote_server"))
panel.model_manager.load_model(remote)
wait(lambda: panel.remote_server_select_combobox.count())
inside = QtCore.QPointF(200, 150)
panel.button_add_point.click()
place = ((inside + canvas.offset_to_center()) * canvas.scale).toPoint()
QtTest.QTest.mouseClick(canvas, QtCore.Qt.MouseButton.LeftButton, pos=place)
(clicked,) = wait(lambda: shapes("AUTOLABEL_OBJECT"))
trained = bool(os.environ["TRAINED"])
assert clicked.contains_point(inside) or not trained
wait(lambda: panel.model_manager.model_execution_thread is None)
panel.edit_text.setText("a cat")
panel.button_send.click()
found, *others = wait(lambda: shapes("a cat"))
assert (found.contains_point(inside) and not others) or not trained
print("ok", flush=True)
os._exit(0)  # the window would ask whether to save
