// Work in slices, so that no task of the main thread is long.

const SLICE = 10; // milliseconds
const channel = new MessageChannel();
const waiting = [];
channel.port1.onmessage = () => waiting.shift()();

// Lets the browser do its own work: a message is a task of its own, and a hidden tab does not slow it down.
export const pause = () => new Promise((resolve) => {
  waiting.push(resolve);
  channel.port2.postMessage(0);
});

export class Slice {
  constructor() {
    this.end = performance.now() + SLICE;
  }

  // Call this between two small pieces of work.
  async turn() {
    if (performance.now() < this.end) return;
    await pause();
    this.end = performance.now() + SLICE;
  }
}
