// What is drawn over a photograph, with undo and redo. States are never changed, only replaced.

export class History {
  #states; #at = 0;
  constructor(first) { this.#states = [first]; }
  get state() { return this.#states[this.#at]; }
  get canUndo() { return this.#at > 0; }
  get canRedo() { return this.#at < this.#states.length - 1; }
  push(state) { this.#states.splice(++this.#at, Infinity, state); }
  /** Change every state: undo and redo leave this change alone. */
  rebase(change) { this.#states = this.#states.map(change); }
  undo() { if (this.canUndo) this.#at--; }
  redo() { if (this.canRedo) this.#at++; }
}
