/** What the meter sees of a media element at one moment. Times in seconds, `now` in milliseconds. */
export interface Sample {
  now: number;
  position: number;
  paused: boolean;
  sought: boolean; // the viewer moved to another place
  ended: boolean;
}

/** A standstill shorter than this (ms) is no stall: nobody sees it, and timers are not finer. */
export const STALL_AFTER = 250;

/**
 * Measures playback from samples of the position alone, so that it counts the same for every player: seconds
 * played, stalls and their length. Pauses, the viewer's own seeks and the end are not stalls. Jumps that the player
 * makes, over a hole or to the live edge, are its attempts to get going: they neither begin nor end a stall.
 */
export class Meter {
  playedSeconds = 0;
  stalls = 0;
  #stalledMs = 0;
  #last: Sample | null = null;
  #movedAt = 0;
  #moving = false; // it played, and the viewer has not interfered since
  #stalled = false;

  /** Takes the next sample. Call about ten times a second. */
  take(s: Sample): void {
    const last = this.#last;
    this.#last = s;
    if (!last) return;

    if (s.paused || s.ended || s.sought) {
      this.#close(s.now);
      this.#moving = false;
      return;
    }
    const step = s.position - last.position;
    const most = (2 * (s.now - last.now)) / 1000 + 0.5;
    if (step > 0 && step <= most) {
      this.playedSeconds += step;
      this.#close(s.now);
      this.#moving = true;
      this.#movedAt = s.now;
    } else if (this.#moving && !this.#stalled && s.now - this.#movedAt >= STALL_AFTER) {
      this.#stalled = true;
      this.stalls++;
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
