// What a user takes away: masks, cut-outs, COCO's JSON and outlines.

import {columns, path} from "./masks.js";
import {blobOf, canvas} from "./photo.js";
import {colourOf} from "./paint.js";

const KINDS = {mask: [maskPng, "mask.png"], cutout: [cutOut, "cutout.png"], coco: [coco, "coco.json"], svg: [svg, "svg"]};

/** Save one of the KINDS; a picture is of the selected object alone, if there is one. */
export async function take(kind, photo, objects, selected) {
  const [made, ending] = KINDS[kind], alone = ["mask", "cutout"].includes(kind) && selected?.mask;
  const chosen = alone ? [selected] : objects.filter(object => object.mask && !object.hidden);
  save(await made(photo, chosen), `${photo.name.replace(/\.[^.]*$/, "")}.${ending}`);
}

/** White where one of the objects is, black elsewhere, at the photograph's size. */
async function maskPng(photo, objects) {
  const picture = canvas(photo.width, photo.height), pen = picture.getContext("2d");
  pen.fillRect(0, 0, photo.width, photo.height);
  pen.fillStyle = "#fff";
  for (const {mask} of objects) columns(mask, (x, top, bottom) => pen.fillRect(x, top, 1, bottom - top));
  return blobOf(picture);
}

/** The photograph where one of the objects is, transparent elsewhere. */
async function cutOut(photo, objects) {
  const picture = canvas(photo.width, photo.height), pen = picture.getContext("2d");
  for (const {mask} of objects) columns(mask, (x, top, bottom) => pen.fillRect(x, top, 1, bottom - top));
  pen.globalCompositeOperation = "source-in";
  const whole = await createImageBitmap(photo.file, {imageOrientation: "from-image"});
  pen.drawImage(whole, 0, 0);
  whole.close();
  return blobOf(picture);
}

/** A COCO data set of one photograph; its file is the one that was sent. */
function coco(photo, objects) {
  const names = [...new Set(objects.map(object => object.label || "object"))];
  const document = {
    images: [{id: 1, file_name: photo.name, width: photo.width, height: photo.height}],
    categories: names.map((name, index) => ({id: index + 1, name})),
    annotations: objects.map((object, index) => ({
      id: index + 1, image_id: 1, category_id: names.indexOf(object.label || "object") + 1,
      segmentation: {size: [photo.height, photo.width], counts: object.mask.counts},
      ...extent(object.mask), iscrowd: 0, ...(object.score !== undefined && {score: object.score}),
    })),
  };
  return new Blob([JSON.stringify(document, null, 1)], {type: "application/json"});
}

/** The pixels of a mask, and the box around them. */
export function extent(mask) {
  let area = 0, left = mask.width, right = 0, upper = mask.height, lower = 0;
  columns(mask, (x, top, bottom) => {
    area += bottom - top;
    left = Math.min(left, x); right = Math.max(right, x + 1);
    upper = Math.min(upper, top); lower = Math.max(lower, bottom);
  });
  return {area, bbox: area ? [left, upper, right - left, lower - upper] : [0, 0, 0, 0]};
}

/** The objects' outlines, in pixels of the photograph. */
function svg(photo, objects) {
  const escape = text => text.replace(/[&<>"]/g, sign => `&#${sign.charCodeAt(0)};`);
  const shapes = objects.map((object, index) => {
    return `<path fill="rgb(${colourOf(object, index).join(",")})" fill-opacity=".5" fill-rule="evenodd" d="${path(object.mask)}"><title>${escape(object.label || `object ${index + 1}`)}</title></path>`;
  });
  const text = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${photo.width} ${photo.height}">\n${shapes.join("\n")}\n</svg>\n`;
  return new Blob([text], {type: "image/svg+xml"});
}

function save(blob, name) {
  const link = Object.assign(document.createElement("a"), {href: URL.createObjectURL(blob), download: name});
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
