/** What the meter sees of a media element at one moment. Times in seconds, `now` in milliseconds. */
export interface Sample {
  now: number;
  position: number;
  paused: boolean;
  seeking: boolean;
  ended: boolean;
}

/** A standstill shorter than this (ms) is no stall: nobody sees it, and timers are not finer. */
export const STALL_AFTER = 250;

/**
 * Measures playback from samples of the position alone, so that it counts the same for every player: seconds
 * played, stalls and their length. Pauses, the viewer's own seeks and the end are not stalls; a seek while it
 * stands still is the player's attempt to get going and does not end the stall.
 */
export class Meter {
  playedSeconds = 0;
  stalls = 0;
  #stalledMs = 0;
  #last: Sample | null = null;
  #movedAt = 0;
  #moving = false; // it played, and has not been paused, sought or ended since
  #stalled = false;

  /** Takes the next sample. Call about ten times a second. */
  take(s: Sample): void {
    const last = this.#last;
    this.#last = s;
    if (!last) return;

    const idle = s.paused || s.ended || (s.seeking && !this.#stalled);
    if (idle) {
      this.#close(s.now);
      this.#moving = false;
      return;
    }
    const step = s.position - last.position;
    const elapsed = (s.now - last.now) / 1000;
    if (s.seeking || step === 0) {
      if (this.#moving && !this.#stalled && s.now - this.#movedAt >= STALL_AFTER) {
        this.#stalled = true;
        this.stalls++;
      }
    } else if (step < 0 || step > 2 * elapsed + 0.5) {
      // A jump is a seek that began and ended between two samples, not time that was watched.
      if (!this.#stalled) this.#moving = false;
    } else {
      if (!last.seeking) this.playedSeconds += step;
      this.#close(s.now);
      this.#moving = true;
      this.#movedAt = s.now;
    }
  }

  /** Starts a new stretch after the player was replaced: a running stall goes on, the position may jump. */
  restart(): void {
    this.#last = null;
  }

  /** True while playback stands still against the viewer's will. */
  get stalled(): boolean {
    return this.#stalled;
  }

  /** Seconds of all stalls, the running one up to the last sample. */
  get stallSeconds(): number {
    const running = this.#stalled && this.#last ? this.#last.now - this.#movedAt : 0;
    return (this.#stalledMs + running) / 1000;
  }

  #close(now: number): void {
    if (this.#stalled) this.#stalledMs += now - this.#movedAt;
    this.#stalled = false;
  }
}
