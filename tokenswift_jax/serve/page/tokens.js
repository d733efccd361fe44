// The tokens of a run: ids, sources and ends. Places are Unicode characters, as the server counts them.

export const SOURCES = ["target", "head", "ngram"];

export class Tokens {
  constructor() {
    this.clear();
  }

  clear() {
    this.count = 0;
    this.ids = new Uint32Array(4096);
    this.ends = new Uint32Array(4096); // characters of the text after each token
    this.sources = new Uint8Array(4096);
  }

  push(id, source, width) {
    if (this.count === this.ids.length) {
      for (const name of ["ids", "ends", "sources"]) {
        const larger = new this[name].constructor(2 * this.count);
        larger.set(this[name]);
        this[name] = larger;
      }
    }
    this.ids[this.count] = id;
    this.sources[this.count] = source;
    this.ends[this.count] = this.start(this.count) + width;
    this.count += 1;
  }

  start(index) {
    return index === 0 ? 0 : this.ends[index - 1];
  }

  // The token that completed the character at a place; the number of tokens if none has yet.
  at(place) {
    let low = 0, high = this.count;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.ends[middle] > place) high = middle;
      else low = middle + 1;
    }
    return low;
  }
}
