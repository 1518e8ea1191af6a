// An example for pages of one's own: one picture, and the mask under the pointer.

import {Decoder} from "./decoder.js";

const canvas = document.getElementById("canvas"), status = document.getElementById("status"), pen = canvas.getContext("2d");

const file = await (await fetch("/playground/samples/chelsea.jpg")).blob(), picture = await createImageBitmap(file);
Object.assign(canvas, {width: picture.width, height: picture.height});

// One request encodes the picture, another one brings the decoder of the same model.
const body = new FormData();
body.append("image", file);
body.append("outputs", "SAM");
const {models} = await (await fetch("/models")).json(), {name} = models.find(model => model.default);
const encoded = await fetch("/embed", {method: "POST", body, headers: {accept: "application/octet-stream"}});
const about = header => JSON.parse(encoded.headers.get(header));
const model = await (await fetch(`/models/${name}/decoder.onnx`)).arrayBuffer();

const decoder = await Decoder.open({model, runtime: "/playground/onnxruntime/"});
await decoder.use({data: await encoded.arrayBuffer(), shape: about("x-samclip-shape"), geometry: about("x-samclip-geometry")});

function draw(mask) {
  pen.drawImage(picture, 0, 0);
  pen.fillStyle = "rgb(255 120 0 / .5)";
  for (let at = 0; at < mask.runs.length; at += 2) {
    for (let start = mask.runs[at], end; start < mask.runs[at + 1]; start = end) {  // a run may go on in the next column
      const column = Math.floor(start / mask.height);
      end = Math.min(mask.runs[at + 1], (column + 1) * mask.height);
      pen.fillRect(column, start - column * mask.height, 1, end - start);
    }
  }
}

let point = null, busy = false;
canvas.onpointermove = async ({offsetX: x, offsetY: y}) => {
  point = {x, y};
  if (busy) return;  // only the newest place is decoded
  for (busy = true; point; await new Promise(requestAnimationFrame)) {
    const points = [point];
    point = null;
    draw((await decoder.decode({points}, {most: 1}))[0]);
  }
  busy = false;
};
pen.drawImage(picture, 0, 0);
status.textContent = "Move the pointer over the picture.";
