// The ways to choose a photograph: files, the camera, drag and drop, the clipboard and samples.

import {reach} from "./api.js";
import {dropped} from "./files.js";
import {$, fail} from "./page.js";
import {made} from "./rows.js";

const FIRST = "chelsea.jpg";

/** Call `show` with each file that is chosen, a sample's with words that suit it, and `add` with several; `first` with the sample to begin with. */
export async function onPhotograph(show, first, add) {
  for (const id of ["file", "snapshot"]) {
    $(id).onchange = () => { show($(id).files[0]); $(id).value = ""; };
  }
  document.addEventListener("dragover", event => { event.preventDefault(); $("picture").classList.add("over"); });
  document.addEventListener("dragleave", () => $("picture").classList.remove("over"));
  document.addEventListener("drop", event => {
    event.preventDefault();
    $("picture").classList.remove("over");
    const [first] = event.dataTransfer.files;
    dropped(event.dataTransfer).then(images => images.length > 1 ? add(images) : show(images[0]?.file ?? first), fail);
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
