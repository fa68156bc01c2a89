import { expect, test } from "vitest";
import { Meter, STALL_AFTER, type Sample } from "./meter";

/** A clock and a video element to drive the meter with. */
class Film {
  readonly meter = new Meter();
  readonly state: Sample = { now: 1000, position: 0, paused: false, seeking: false, ended: false };

  /** Lets ms pass in steps of 100; the position moves along at the given speed. */
  pass(ms: number, speed: number, change: Partial<Sample> = {}): this {
    Object.assign(this.state, change);
    for (let t = 0; t < ms; t += 100) {
      this.state.now += 100;
      this.state.position += 0.1 * speed;
      this.meter.take({ ...this.state });
    }
    return this;
  }
}

test("smooth playback has no stalls", () => {
  const { meter } = new Film().pass(10_000, 1);
  expect(meter.stalls).toBe(0);
  expect(meter.stallSeconds).toBe(0);
  expect(meter.playedSeconds).toBeCloseTo(9.9);
});

test("waiting for the first picture is startup, not a stall", () => {
  expect(new Film().pass(5000, 0).meter.stalls).toBe(0);
});

test("a standstill while playing is one stall of its whole length", () => {
  const film = new Film().pass(2000, 1).pass(1500, 0);
  expect(film.meter.stalled).toBe(true);
  expect(film.meter.stallSeconds).toBeCloseTo(1.5);
  film.pass(2000, 1);
  expect(film.meter.stalled).toBe(false);
  expect(film.meter.stalls).toBe(1);
  expect(film.meter.stallSeconds).toBeCloseTo(1.6);
  expect(film.pass(1000, 0).pass(1000, 1).meter.stalls).toBe(2);
});

test("a hiccup below the threshold does not count", () => {
  const { meter } = new Film().pass(2000, 1).pass(STALL_AFTER - 50, 0).pass(2000, 1);
  expect(meter.stalls).toBe(0);
});

test.each([
  ["paused", { paused: true }],
  ["ended", { ended: true }],
  ["sought by the viewer", { seeking: true }],
])("a film that is %s does not stall", (_, change) => {
  expect(new Film().pass(2000, 1).pass(3000, 0, change).meter.stalls).toBe(0);
});

test("after a pause the wait for data is not held against the stream", () => {
  const film = new Film().pass(2000, 1).pass(2000, 0, { paused: true }).pass(2000, 0, { paused: false });
  expect(film.meter.stalls).toBe(0);
});

test("a seek while standing still is part of the stall, and so is a jump", () => {
  const film = new Film().pass(2000, 1).pass(500, 0).pass(500, 0, { seeking: true });
  film.pass(1000, 0, { seeking: false, position: 60 });
  expect(film.meter.stalled).toBe(true);
  film.pass(1000, 1);
  expect(film.meter.stalls).toBe(1);
  expect(film.meter.stallSeconds).toBeGreaterThan(1.9);
  expect(film.meter.playedSeconds).toBeLessThan(3.1);
});

test("a jump while playing is neither a stall nor time watched", () => {
  const { meter } = new Film().pass(2000, 1).pass(1000, 1, { position: 100 }).pass(1000, 1, { position: 5 });
  expect(meter.stalls).toBe(0);
  expect(meter.playedSeconds).toBeLessThan(4);
});

test("a stall goes on while the player is replaced", () => {
  const film = new Film().pass(2000, 1).pass(1000, 0);
  film.meter.restart();
  film.pass(1000, 0, { position: 500 }).pass(1000, 1);
  expect(film.meter.stalls).toBe(1);
  expect(film.meter.stallSeconds).toBeGreaterThan(1.9);
});
