// A photograph as the page holds it: its file, its size, and a copy small enough to draw.

const SENT_AS_IS = ["image/jpeg", "image/png", "image/webp"];
const LONGEST = 1280;  // pixels of the copy that is drawn: masks are drawn at this size as well

/** Open a file; `path`: its place in the folder that was chosen. */
export async function open(file, path = file.name) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, {imageOrientation: "from-image"});
  } catch {
    throw new Error(`This browser cannot read ${file.name || "this file"}. Choose a JPEG, PNG or WebP file.`);
  }
  const {width, height} = bitmap, scale = Math.min(1, LONGEST / Math.max(width, height));
  const copy = canvas(Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale)));
  const pen = copy.getContext("2d");
  pen.imageSmoothingQuality = "high";
  pen.drawImage(bitmap, 0, 0, copy.width, copy.height);
  const sent = SENT_AS_IS.includes(file.type) ? file : await converted(bitmap, file);
  bitmap.close();
  return {name: sent.name || "pasted.png", path, id: idOf(file, path), source: file, file: sent, key: null, width, height, copy};
}

/** What a file is known by after a reload. */
export const idOf = (file, path = file.name) => `${path} ${file.size} ${file.lastModified}`;

/** A data URI of the photograph, of at most ``longest`` pixels a side and ``most`` bytes; empty where none is that small. */
export function thumbnail(photo, longest, most) {
  if (longest < 16) return "";
  const scale = Math.min(1, longest / Math.max(photo.copy.width, photo.copy.height));
  const small = canvas(Math.max(1, Math.round(photo.copy.width * scale)), Math.max(1, Math.round(photo.copy.height * scale)));
  small.getContext("2d").drawImage(photo.copy, 0, 0, small.width, small.height);
  const made = small.toDataURL("image/jpeg", 0.7);
  return made.length <= most ? made : thumbnail(photo, 0.85 * longest, most);
}

export function canvas(width, height) {
  return Object.assign(document.createElement("canvas"), {width, height});
}

export const blobOf = (source, type = "image/png") => new Promise(done => source.toBlob(done, type));

async function converted(bitmap, {name, lastModified}) {
  const whole = canvas(bitmap.width, bitmap.height);
  whole.getContext("2d").drawImage(bitmap, 0, 0);
  const stem = (name || "pasted").replace(/\.[^.]*$/, "");
  return new File([await blobOf(whole)], `${stem}.png`, {type: "image/png", lastModified});
}

/** A file in base64, as the service takes it in JSON. */
export async function encoded(file) {
  const url = await new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => failed(new Error(`${file.name} cannot be read: it has moved or changed. Choose it again.`));
    reader.readAsDataURL(file);
  });
  return url.slice(url.indexOf(",") + 1);
}
