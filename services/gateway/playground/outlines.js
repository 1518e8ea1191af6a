// The outlines of a mask: closed lines with as few corners as a pixel's tolerance allows.

import {raster} from "./masks.js";

const TOLERANCE = 1;  // pixels of the traced picture: a simplified line leaves the traced one by no more
const STEPS = [[1, 0], [0, 1], [-1, 0], [0, -1]];  // clockwise, y points down

/**
 * The rings around a mask, as lists of [x, y] in its pixels; holes run the other way round. It is
 * traced at the size given, at most its own. With a `reach`, each point is the mean of so many on
 * either side: masks are known in cells, whose steps nobody wants to see.
 */
export function outlines(mask, width = mask.width, height = mask.height, reach = 0) {
  const scale = [mask.width / width, mask.height / height];
  return rings(raster(mask, width, height), width, height).map(ring => smoothed(ring, reach)).map(ring => {
    const few = simplified(ring);
    return (few.length > 2 ? few : ring).map(([x, y]) => [x * scale[0], y * scale[1]]);
  });
}

/** The outlines as the path of an SVG. */
export const path = (mask, ...size) => outlines(mask, ...size)
  .map(ring => `M${ring.map(point => point.map(place => +place.toFixed(1)).join(" ")).join(" ")}Z`).join("");

function smoothed(ring, reach) {
  if (!reach || ring.length < 8 * reach) return ring;
  const span = 2 * reach + 1, sum = [0, 0], at = place => ring[(place + ring.length) % ring.length];
  const move = (place, sign) => at(place).forEach((value, axis) => { sum[axis] += sign * value; });
  for (let place = -reach; place < reach; place++) move(place, 1);
  return ring.map((_, place) => {
    move(place + reach, 1);
    const mean = sum.map(value => value / span);
    move(place - reach, -1);
    return mean;
  });
}

/** Follow the pixels' edges with the inside on the right; points are the middles of edges. */
function rings(inside, width, height) {
  const at = (x, y) => x >= 0 && y >= 0 && x < width && y < height && inside[y * width + x] === 1;
  const seen = new Uint8Array(inside.length), found = [];
  for (let start = inside.indexOf(1); start >= 0; start = inside.indexOf(1, start + 1)) {
    const x = start % width, y = (start - x) / width;
    if (!seen[start] && !at(x, y - 1)) found.push(ring(at, seen, width, x, y));
  }
  return found;
}

/** The ring that begins at the upper edge of a pixel; marks the pixels whose upper edges it has. */
function ring(at, seen, width, left, top) {
  const points = [];
  let x = left, y = top, way = 0;
  do {
    if (way === 0) seen[y * width + x] = 1;
    const [dx, dy] = STEPS[way];
    points.push([x + dx / 2, y + dy / 2]);
    x += dx;
    y += dy;
    const ahead = turn => {  // the pixel on the right or left of the next step
      const [rx, ry] = STEPS[(way + turn) % 4];
      return at(x + (dx + rx - 1) / 2, y + (dy + ry - 1) / 2);
    };
    if (!ahead(1)) way = (way + 1) % 4; else if (ahead(3)) way = (way + 3) % 4;
  } while (x !== left || y !== top || way !== 0);
  return points;
}

/** The corners of a closed line that leaves the given one by TOLERANCE at most (Douglas and Peucker). */
function simplified(points) {
  const far = points.reduce((best, point, index) => apart(point, points[0]) > apart(points[best], points[0]) ? index : best, 0);
  const kept = new Uint8Array(points.length), parts = [[0, far], [far, points.length]];
  while (parts.length) {
    const [first, last] = parts.pop(), from = points[first], to = points[last % points.length];
    kept[first] = 1;
    let most = TOLERANCE, corner = 0;
    for (let i = first + 1; i < last; i++) {
      const distance = beside(points[i], from, to);
      if (distance > most) { most = distance; corner = i; }
    }
    if (corner) parts.push([first, corner], [corner, last]);
  }
  return points.filter((_, index) => kept[index]);
}

const apart = ([x, y], [u, v]) => Math.hypot(x - u, y - v);

/** The distance of a point from the line between two others. */
function beside(point, from, to) {
  const length = apart(from, to) || 1;
  const along = ((point[0] - from[0]) * (to[0] - from[0]) + (point[1] - from[1]) * (to[1] - from[1])) / length;
  const share = Math.min(Math.max(along / length, 0), 1);
  return apart(point, [from[0] + share * (to[0] - from[0]), from[1] + share * (to[1] - from[1])]);
}
