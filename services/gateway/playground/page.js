// What the page says: status, errors, the clock of the request in progress.

export const $ = id => document.getElementById(id);
let work = null;  // the AbortController of the request in progress

export const working = () => work !== null;
export const abort = () => work?.abort();

export let pressed = null;  // the button that was pressed last: its error is shown beside it as well
for (const name of ["click", "keydown", "drop"]) {
  document.addEventListener(name, event => { pressed = event.target.closest?.("button, .button") ?? null; }, true);
}

/** A sentence if nothing was found for words with letters that English does not use. */
export const inEnglish = words => words.some(word => /(?=\p{L})[^\x00-\x7f]/u.test(word)) ? " The model has learned only English." : "";

/** Grey a control, and say why when it is pressed; without a reason it can be used. */
export function grey(control, why) {
  control.dataset.title ??= control.title;
  control.title = why || control.dataset.title;
  control.ariaDisabled = why ? "true" : null;
}
document.addEventListener("click", event => {
  const control = event.target.closest?.("[aria-disabled=true]");
  if (!control) return;
  event.preventDefault();
  event.stopImmediatePropagation();
  say(control.title);
}, true);

const beside = $("beside");  // kept, because the lists that it stands in are made anew
function write(status, error) {
  $("status").textContent = status;
  $("error").textContent = beside.textContent = error;
  beside.hidden = !error;
}

export let frame = 0;  // side of the model's frame, as the last answer says
export function showModel(model) {
  if (!model) return;
  frame = model.image_size ?? frame;
  const parts = [model.name, model.digest.slice(0, 12), model.uncalibrated && "uncalibrated scores", model.without_masks && "makes no masks"];
  $("model").textContent = parts.filter(Boolean).join(" · ");
  const why = model.without_masks ? `${model.name} makes no masks: it only names, maps and searches.` : "";
  for (const id of ["phrase", "modes", "refine"]) Object.assign($(id), {disabled: Boolean(why), title: why});
  for (const button of [$("tab-objects"), document.querySelector("#find button")]) grey(button, why);
  if (why) $("refine").checked = false;
  $("demonstration").hidden = !model.demonstration;
  $("demonstration").textContent = `${model.name} · a demonstration`;
  soft = model.demonstration || model.uncalibrated;
  measured = model.sure || 2;
}

let soft = true, measured = 2;  // the score from which nine of ten texts are right: 2 if nobody has measured it
const SURE = [[0.9, "likely"], [0.7, "perhaps"], [0.5, "unsure"], [0, "a guess"]];
/** How sure a score is, from 3 to 0: as many dots are full. */
export const levelOf = score => 3 - SURE.findIndex(([least]) => score >= least);
/** How sure an answer is, in words; without a number for a demonstration and for scores that nobody has fitted. */
export function sure(score, asText) {
  const word = SURE[3 - levelOf(score)][1];
  return soft ? word : `${asText && score >= measured ? "very sure" : word}, ${score.toFixed(2)}`;
}

/** So many photographs, and what they "have" done. */
export const counted = (count, verb = "") => `${count} photograph${count === 1 ? "" : "s"}${verb && ` ${count === 1 ? verb.replace("have", "has") : verb}`}`;

/** The first of some names, and how many more there are. */
export const some = names => names.slice(0, 3).join(", ") + (names.length > 3 ? ` and ${names.length - 3} more` : "");

let ended = "";  // what a new question has done to the one before: said with its answer
export const say = text => write([text, ended].filter(Boolean).join(" "), "");
export function fail(error, at = pressed) {
  if (error.name === "AbortError") return;
  const locked = error.status === 401;
  write("", locked ? "This service wants an API key: type it in the menu, then try again." : error.message);
  if (locked) { $("menu").togglePopover(true); $("key").focus(); beside.hidden = true; return; }
  if (at?.offsetParent && at.closest("#panels, #menu")) (at.closest(".row") ?? at).after(beside);
  else $("picture").append(beside);
  beside.classList.toggle("upper", Boolean(at?.closest("header")));
  beside.scrollIntoView({block: "nearest"});
}

/** Ask before something is done, and for a word if there is a `word` to begin with. Returns the word, or whether to do it. */
export async function really(text, yes, no, word) {
  const dialog = $("really"), [does, leaves] = dialog.querySelectorAll("button");
  $("really-text").textContent = text;
  [does.textContent, leaves.textContent] = [yes, no];
  [does.className, leaves.className] = word === undefined ? ["bad", "main"] : ["main", ""];
  $("really-word").hidden = word === undefined;
  $("really-word").value = word ?? "";
  dialog.returnValue = "";
  dialog.showModal();
  $("really-word").select();
  await new Promise(done => { dialog.onclose = done; });
  return dialog.returnValue && ($("really-word").value.trim() || true);
}

/** What may say more where an answer takes long: the list of models sets it. */
export const on = {slow: null};

/** Run a question with a clock and a way to cancel; a new question ends the one before, and says so. */
export async function busy(question) {
  const before = work?.signal.aborted === false && (work.named ? `“${work.named}” was stopped.` : "The question before was stopped.");
  work?.abort();
  const mine = work = new AbortController(), start = performance.now(), at = pressed;
  ended = before || "";
  mine.named = at?.textContent.trim();
  const tick = setInterval(() => {
    const seconds = (performance.now() - start) / 1000;
    $("elapsed").textContent = `${seconds.toFixed(1)} s`;
    if (seconds < 0.4 || !$("busy").hidden) return;
    $("busy").hidden = false;
    say("Asking the service …");
    on.slow().catch(() => {});
  }, 100);
  $("busy").hidden = true;
  say("");
  try {
    const answer = await question(mine.signal);
    return mine.signal.aborted ? null : {...answer, ms: Math.round(performance.now() - start)};
  } catch (error) { fail(error, at); return null; } finally {
    clearInterval(tick);
    if (work === mine) {
      work = null;
      setTimeout(() => { if (!work) ended = ""; });
      if (document.activeElement === $("cancel")) (at ?? $("stage")).focus();
      $("busy").hidden = true;
      $("progress").removeAttribute("value");
    }
  }
}
