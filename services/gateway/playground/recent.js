// Words that were typed before, the last ones first, which this browser offers again.

import {remembered} from "./remembered.js";

const KEPT = 30;

export class Recent {
  /** `list`: the datalist in which they are offered. */
  constructor(name, list) {
    Object.assign(this, {kept: remembered(`samclip-${name}`), list});
    this.offer();
    Recent.all.push(this);
  }

  get words() { return this.kept.get().split("\n").filter(Boolean); }  // lines: any text can be read

  add(word) {
    this.kept.set([word, ...this.words.filter(other => other !== word)].slice(0, KEPT).join("\n"));
    this.offer();
  }

  /** Offer them, and after them others that fit now. */
  offer(more = []) { this.list.replaceChildren(...[...new Set([...this.words, ...more])].map(word => new Option("", word))); }

  static all = [];
  /** Forget all words of all kinds. */
  static forget() { for (const each of Recent.all) { each.kept.set(""); each.offer(); } }
}
