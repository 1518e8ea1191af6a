// What a user takes away: masks, cut-outs and data sets.

import {columns, decode, extent} from "./masks.js";
import {outlines, path} from "./outlines.js";
import {$, say} from "./page.js";
import {blobOf, canvas} from "./photo.js";
import {colourOf} from "./paint.js";
import {zip} from "./zip.js";

const UNNAMED = "object";
const KINDS = {
  mask: [maskPng, ".mask.png"], cutout: [cutOut, ".cutout.png"], svg: [svg, ".svg"], yolo: [yolo, ".yolo.zip"],
  coco: [(photo, objects) => coco([{...photo, objects}], namesOf(objects)), ".coco.json"], csv: [(photo, objects) => csv([{...photo, objects}]), ".csv"],
};
const stemOf = ({name}) => name.replace(/\.[^.]*$/, "");

/** Save objects as one of the KINDS. */
export async function take(kind, photo, objects) {
  const [make, ending] = KINDS[kind], file = stemOf(photo) + ending, full = objects.filter(({mask}) => mask.runs.length);
  if (!full.length) throw new Error("There is no object to save: show one, or find some first.");
  save(await make(photo, full), file);
  say(`Saved: ${file}.`);
}

/** The names of objects, in their order. */
export const namesOf = objects => [...new Set(objects.map(object => object.label || UNNAMED))];

/** White where one of the objects is, black elsewhere, at the photograph's size. */
async function maskPng(photo, objects) {
  const picture = canvas(photo.width, photo.height), pen = picture.getContext("2d");
  pen.fillRect(0, 0, photo.width, photo.height);
  pen.fillStyle = "#fff";
  for (const {mask} of objects) columns(mask, (x, top, bottom) => pen.fillRect(x, top, 1, bottom - top));
  return blobOf(picture);
}

/** Save an outline that was drawn, which a copied program reads. */
export async function saveOutline(mask, file) { save(await maskPng(mask, [{mask: decode(mask)}]), file); }

/** The box round all objects: left, top, width and height. */
function boxOf(objects) {
  const boxes = objects.map(({mask}) => extent(mask).bbox);
  const [left, top] = [0, 1].map(axis => Math.min(...boxes.map(box => box[axis])));
  const [right, bottom] = [0, 1].map(axis => Math.max(...boxes.map(box => box[axis] + box[axis + 2])));
  return [left, top, right - left, bottom - top];
}

/** The photograph where one of the objects is, transparent elsewhere: as large as the objects, or all of it if that is wanted. */
async function cutOut(photo, objects) {
  const [left, top, width, height] = $("whole").checked ? [0, 0, photo.width, photo.height] : boxOf(objects);
  const picture = canvas(width, height), pen = picture.getContext("2d");
  pen.translate(-left, -top);
  for (const {mask} of objects) columns(mask, (x, top, bottom) => pen.fillRect(x, top, 1, bottom - top));
  pen.globalCompositeOperation = "source-in";
  const whole = await createImageBitmap(photo.file, {imageOrientation: "from-image"});
  pen.drawImage(whole, 0, 0);
  whole.close();
  return blobOf(picture);
}

/** A COCO data set of photographs, {name, width, height, objects} each, with categories of these names. */
export function coco(photographs, names) {
  const annotations = photographs.flatMap(({width, height, objects}, photo) => objects.map(({mask, label, score}) => ({
    image_id: photo + 1, category_id: names.indexOf(label || UNNAMED) + 1, segmentation: {size: [height, width], counts: mask.counts},
    ...extent(mask), iscrowd: 0, ...(score !== undefined && {score}),
  })));
  const document = {
    images: photographs.map(({name, width, height}, index) => ({id: index + 1, file_name: name, width, height})),
    categories: names.map((name, index) => ({id: index + 1, name})),
    annotations: annotations.map((annotation, index) => ({id: index + 1, ...annotation})),
  };
  return new Blob([JSON.stringify(document, null, 1)], {type: "application/json"});
}

/** A data set that YOLO trains segmentation with: a line for each object has the number of its name, and one outline in shares of the sides. */
function yolo(photo, objects) {
  const names = namesOf(objects), line = ({mask, label}) => {
    const places = joined(outlines(mask)).flatMap(([x, y]) => [x / mask.width, y / mask.height]);
    return [names.indexOf(label || UNNAMED), ...places.map(place => +place.toFixed(6))].join(" ");
  };
  const about = ["train: images", "val: images", "names:", ...names.map((name, number) => `  ${number}: ${JSON.stringify(name)}`)];
  const text = lines => new Blob(lines.map(line => `${line}\n`));
  return zip([[photo.file, `images/${photo.name}`], [text(objects.map(line)), `labels/${stemOf(photo)}.txt`], [text(about), "data.yaml"]]);
}

/** A line for each object of photographs: its name, score, area and box in pixels. No name is a formula to a spreadsheet. */
export function csv(photographs) {
  const text = name => /^[=+\-@\t\r]/.test(name) ? `'${name}` : name;
  const cell = name => /[",\r\n]/.test(name) ? `"${text(name).replaceAll('"', '""')}"` : text(name);
  const lines = photographs.flatMap(({name, objects}) => objects.map(({label, score, mask}) => {
    const {area, bbox} = extent(mask);
    return [cell(name), cell(label || UNNAMED), score ?? "", area, ...bbox].join(",");
  }));
  return new Blob([["file,name,score,area,x,y,width,height", ...lines].map(line => `${line}\n`).join("")], {type: "text/csv"});
}

/** One ring for all: the others are reached from its start by a line, there and back. */
function joined([first, ...others]) {
  if (!others.length) return first;
  return [...first, ...others.flatMap(ring => [first[0], ...ring, ring[0]]), first[0]];
}

/** The objects' outlines, in pixels of the photograph. */
function svg(photo, objects) {
  const escape = text => text.replace(/[&<>"]/g, sign => `&#${sign.charCodeAt(0)};`);
  const shapes = objects.map((object, index) => {
    const colour = `rgb(${colourOf(object, index).join(",")})`;
    return `<path fill="${colour}" fill-opacity=".15" stroke="${colour}" stroke-width="2" vector-effect="non-scaling-stroke" fill-rule="evenodd" d="${path(object.mask)}"><title>${escape(object.label || `object ${index + 1}`)}</title></path>`;
  });
  const text = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${photo.width} ${photo.height}">\n${shapes.join("\n")}\n</svg>\n`;
  return new Blob([text], {type: "image/svg+xml"});
}

export function save(blob, name) {
  const link = Object.assign(document.createElement("a"), {href: URL.createObjectURL(blob), download: name});
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
