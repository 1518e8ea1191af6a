// The ways to choose a photograph: files, the camera, drag and drop, the clipboard and samples.

import {reach} from "./api.js";
import {chosen, dropped} from "./files.js";
import {$, fail} from "./page.js";
import {made} from "./rows.js";

const FIRST = "chelsea.jpg";

/** Call `show` with a file that is chosen, a sample's with words that suit it, and `several` with more; `first` with the sample to begin with. */
export async function onPhotograph(show, first, several) {
  const take = (images, file) => images.length > 1 ? several(images) : show(images[0]?.file ?? file);
  for (const id of ["file", "snapshot"]) {
    $(id).onchange = () => { const images = chosen($(id)); $(id).value = ""; take(images); };
  }
  document.addEventListener("dragover", event => { event.preventDefault(); $("picture").classList.add("over"); });
  document.addEventListener("dragleave", () => $("picture").classList.remove("over"));
  document.addEventListener("drop", event => {
    event.preventDefault();
    $("picture").classList.remove("over");
    const [first] = event.dataTransfer.files;
    dropped(event.dataTransfer).then(images => take(images, first), fail);
  });
  document.addEventListener("paste", event => show([...event.clipboardData.files][0]));
  const samples = await (await reach("/playground/samples/samples.json")).json();
  $("samples").replaceChildren(...samples.map(({file, title, ...suited}) => {
    const url = `/playground/samples/${file}`, button = made("button", Object.assign(made("img"), {src: url, alt: title}));
    const sample = async () => new File([await (await reach(url)).blob()], file, {type: "image/jpeg", lastModified: 0});
    button.onclick = () => show(sample(), suited);
    if (file === FIRST) first(sample(), suited);
    return button;
  }));
}
