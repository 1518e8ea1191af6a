// The photograph on the page: zoom and pan, points and boxes by mouse, touch, pen or keyboard.
// All coordinates outside this file are pixels of the photograph.

const DRAG = 6;        // screen pixels that a pointer moves before a click becomes a drag
const MOST_ZOOM = 16;
const PRESS_MS = 400;  // a finger that rests so long looks at what a tap would take

export class Stage {
  mode = "include";    // what a click or a drag does: include, exclude, box, draw or move
  on = {};             // functions point(x, y, negative), box(box), drawn(line), hover(x, y), name({x, y}), outside() and leave()
  presses = false;     // whether a long press of a finger hovers; lifted, the finger sets a point where it is
  #canvas; #photo; #space = false; #overlays = []; #points = []; #box = null; #cursor = null;
  #zoom = 1; #centre = {x: 0, y: 0}; #pointers = new Map(); #drag = null; #due = false;

  constructor(canvas) {
    this.#canvas = canvas;
    new ResizeObserver(() => this.draw()).observe(canvas);
    const listen = (name, handler) => canvas.addEventListener(name, handler);
    listen("pointerdown", event => this.#down(event));
    listen("pointermove", event => this.#move(event));
    listen("pointerup", event => this.#up(event));
    listen("pointercancel", event => { this.#pointers.delete(event.pointerId); this.#drag = null; this.draw(); });
    listen("pointerleave", () => this.on.leave());
    listen("dblclick", event => { if (this.#photo && this.mode === "move") this.on.name(this.#picture(this.#screen(event))); });
    listen("contextmenu", event => event.preventDefault());
    listen("wheel", event => { event.preventDefault(); this.zoom(Math.exp(-event.deltaY / (event.ctrlKey ? 100 : 400)), this.#screen(event)); });
    listen("keydown", event => this.#key(event));
    listen("keyup", event => { if (event.key === " ") this.#space = false; this.draw(); });
    listen("blur", () => { this.#cursor = null; this.#space = false; this.on.leave(); this.draw(); });
  }

  show(photo) {
    this.#photo = photo;
    this.#cursor = null;
    this.fit();
  }

  /** Draw these pictures over the photograph, and these points and this box over them. */
  over(pictures, points = [], box = null) {
    this.#overlays = pictures; this.#points = points; this.#box = box;
    this.draw();
  }

  fit() {
    if (!this.#photo) return;
    this.#zoom = 1;
    this.#centre = {x: this.#photo.width / 2, y: this.#photo.height / 2};
    this.draw();
  }

  /** Zoom by a factor; the place at ``screen`` (by default the middle) stays where it is. */
  zoom(factor, screen = {x: this.#canvas.clientWidth / 2, y: this.#canvas.clientHeight / 2}) {
    if (!this.#photo) return;
    const before = this.#picture(screen);
    this.#zoom = Math.min(MOST_ZOOM, Math.max(1, this.#zoom * factor));
    const after = this.#picture(screen);
    this.#pan(before.x - after.x, before.y - after.y);
  }

  draw() {
    if (this.#due) return;
    this.#due = true;
    requestAnimationFrame(() => { this.#due = false; if (this.#photo) this.#paint(); });
  }

  get #scale() {  // screen pixels per pixel of the photograph
    return this.#zoom * Math.min(this.#canvas.clientWidth / this.#photo.width, this.#canvas.clientHeight / this.#photo.height);
  }

  #screen(event) {
    const frame = this.#canvas.getBoundingClientRect();
    return {x: event.clientX - frame.left, y: event.clientY - frame.top};
  }

  #picture(screen) {
    return {x: this.#centre.x + (screen.x - this.#canvas.clientWidth / 2) / this.#scale,
            y: this.#centre.y + (screen.y - this.#canvas.clientHeight / 2) / this.#scale};
  }

  #inside({x, y}) {
    const within = (value, most) => Math.min(Math.max(value, 0), most - 0.01);
    return {x: within(x, this.#photo.width), y: within(y, this.#photo.height)};
  }

  #pan(x, y) {
    const half = {x: this.#canvas.clientWidth / 2 / this.#scale, y: this.#canvas.clientHeight / 2 / this.#scale};
    const keep = (value, edge, size) => size <= 2 * edge ? size / 2 : Math.min(Math.max(value, edge), size - edge);
    this.#centre = {x: keep(this.#centre.x + x, half.x, this.#photo.width), y: keep(this.#centre.y + y, half.y, this.#photo.height)};
    this.draw();
  }

  #down(event) {
    if (!this.#photo) return;
    this.#canvas.setPointerCapture(event.pointerId);
    const at = this.#screen(event);
    this.#pointers.set(event.pointerId, at);
    const boxes = ["box", "draw"].includes(this.mode) || event.pointerType === "mouse";
    const pans = event.button === 1 || this.#pointers.size > 1 || !boxes || this.#space || this.mode === "move";
    const negative = event.button === 2 || event.shiftKey || this.mode === "exclude";
    const line = this.mode === "draw" && !pans ? [this.#inside(this.#picture(at))] : null;
    const drag = this.#drag = {from: at, at, pans, negative, line, moved: this.#pointers.size > 1 || event.button === 1};
    if (this.presses && event.pointerType === "touch" && !line) setTimeout(() => this.#press(drag), PRESS_MS);
  }

  #press(drag) {
    if (drag !== this.#drag || drag.moved || this.mode === "move") return;
    drag.pressed = true;
    this.on.hover(...Object.values(this.#picture(drag.at)));
  }

  #move(event) {
    if (!this.#photo) return;
    const at = this.#screen(event), before = this.#pointers.get(event.pointerId);
    if (!before) return this.on.hover(...Object.values(this.#picture(at)));
    const others = [...this.#pointers].filter(([id]) => id !== event.pointerId);
    this.#pointers.set(event.pointerId, at);
    if (others.length) {
      const [, other] = others[0], apart = place => Math.hypot(place.x - other.x, place.y - other.y) || 1;
      this.zoom(apart(at) / apart(before), {x: (at.x + other.x) / 2, y: (at.y + other.y) / 2});
    }
    const drag = this.#drag;
    if (!drag) return;
    drag.at = at;
    if (drag.pressed) { drag.from = at; return this.on.hover(...Object.values(this.#picture(at))); }
    drag.line?.push(this.#inside(this.#picture(at)));
    drag.moved ||= Math.hypot(at.x - drag.from.x, at.y - drag.from.y) > DRAG;
    if (drag.moved && drag.pans) this.#pan((before.x - at.x) / this.#scale / this.#pointers.size, (before.y - at.y) / this.#scale / this.#pointers.size);
    this.draw();
  }

  #up(event) {
    this.#pointers.delete(event.pointerId);
    const drag = this.#drag;
    if (!drag || this.#pointers.size) return;
    this.#drag = null;
    if (drag.pressed) this.on.leave();
    if (!drag.moved && !["box", "move"].includes(this.mode) && !this.#space) {
      const {x, y} = this.#picture(drag.from);
      if (x < 0 || y < 0 || x >= this.#photo.width || y >= this.#photo.height) this.on.outside();
      else this.on.point(x, y, drag.negative);
    } else if (drag.moved && !drag.pans) {
      if (drag.line) this.on.drawn(drag.line); else this.on.box(this.#boxOf(drag));
    }
    this.draw();
  }

  #boxOf({from, at}) {
    const a = this.#inside(this.#picture(from)), b = this.#inside(this.#picture(at));
    return {x_min: Math.min(a.x, b.x), y_min: Math.min(a.y, b.y), x_max: Math.max(a.x, b.x), y_max: Math.max(a.y, b.y)};
  }

  #key(event) {
    const ways = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}, way = ways[event.key];
    if (!this.#photo || event.ctrlKey || event.metaKey || !(way || ["Enter", " "].includes(event.key))) return;
    event.preventDefault();
    if (event.key === " ") { this.#space = true; this.draw(); return; }
    const step = Math.max(this.#photo.width, this.#photo.height) / this.#zoom * (event.shiftKey ? 0.002 : 0.02);
    this.#cursor ??= {...this.#centre};
    if (way) {
      this.#cursor = this.#inside({x: this.#cursor.x + way[0] * step, y: this.#cursor.y + way[1] * step});
      this.on.hover(this.#cursor.x, this.#cursor.y);
    } else this.on.point(this.#cursor.x, this.#cursor.y, event.shiftKey || this.mode === "exclude");
    this.draw();
  }

  #paint() {
    const {clientWidth: width, clientHeight: height} = this.#canvas, dense = devicePixelRatio || 1;
    this.#canvas.width = Math.round(width * dense);
    this.#canvas.height = Math.round(height * dense);
    this.#canvas.dataset.zoom = this.#zoom > 1 ? "zoomed" : this.#scale < 1 ? "reduced" : "";
    this.#canvas.style.cursor = this.#space || this.mode === "move" ? "grab" : "";
    const pen = this.#canvas.getContext("2d"), scale = this.#scale * dense;
    const left = this.#canvas.width / 2 - this.#centre.x * scale, top = this.#canvas.height / 2 - this.#centre.y * scale;
    for (const picture of [this.#photo.copy, ...this.#overlays]) {
      pen.drawImage(picture, left, top, this.#photo.width * scale, this.#photo.height * scale);
    }
    pen.setTransform(dense, 0, 0, dense, left, top);
    this.#marks(pen, scale / dense);
  }

  #marks(pen, scale) {
    const drag = this.#drag, drags = drag?.moved && !drag.pans;
    const drawn = drags && !drag.line ? this.#boxOf(drag) : this.#box;
    const ring = (x, y, radius, inner) => {
      pen.beginPath(); pen.arc(x * scale, y * scale, radius, 0, 7);
      pen.fillStyle = inner; pen.fill();
      pen.lineWidth = 2; pen.strokeStyle = "#fff"; pen.stroke();
    };
    if (drags && drag.line) {
      pen.beginPath();
      for (const {x, y} of drag.line) pen.lineTo(x * scale, y * scale);
      pen.fillStyle = "rgb(255 255 255 / .3)"; pen.fill();
      for (const [line, wide] of [["#000", 4], ["#fff", 2]]) { pen.strokeStyle = line; pen.lineWidth = wide; pen.stroke(); }
    }
    if (drawn) {
      const place = [drawn.x_min, drawn.y_min, drawn.x_max - drawn.x_min, drawn.y_max - drawn.y_min].map(value => value * scale);
      for (const [line, dash] of [["#000", []], ["#fff", [6, 4]]]) {
        pen.strokeStyle = line; pen.lineWidth = 2; pen.setLineDash(dash); pen.strokeRect(...place);
      }
      pen.setLineDash([]);
    }
    for (const {x, y, negative} of this.#points) {
      ring(x, y, 7, negative ? "#c62828" : "#1b7f4d");
      pen.beginPath(); pen.moveTo(x * scale - 3.5, y * scale); pen.lineTo(x * scale + 3.5, y * scale);
      if (!negative) { pen.moveTo(x * scale, y * scale - 3.5); pen.lineTo(x * scale, y * scale + 3.5); }
      pen.stroke();
    }
    if (this.#cursor) {
      const {x, y} = this.#cursor;
      for (const [line, wide] of [["#000", 4], ["#fff", 2]]) {
        pen.strokeStyle = line; pen.lineWidth = wide; pen.beginPath();
        pen.moveTo(x * scale - 12, y * scale); pen.lineTo(x * scale + 12, y * scale);
        pen.moveTo(x * scale, y * scale - 12); pen.lineTo(x * scale, y * scale + 12); pen.stroke();
      }
    }
  }
}
