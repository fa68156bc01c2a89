import { expect, test } from "vitest";
import { Meter, STALL_AFTER, type Sample } from "./meter";

/** A clock and a video element to drive the meter with. */
class Film {
  readonly meter = new Meter();
  readonly state: Sample = { now: 1000, position: 0, paused: false, sought: false, ended: false };

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
  ["sought by the viewer", { sought: true }],
])("a film that is %s does not stall", (_, change) => {
  expect(new Film().pass(2000, 1).pass(3000, 0, change).meter.stalls).toBe(0);
});

test("after a pause the wait for data is not held against the stream", () => {
  const film = new Film().pass(2000, 1).pass(2000, 0, { paused: true }).pass(2000, 0, { paused: false });
  expect(film.meter.stalls).toBe(0);
});

test("a player that jumps over a hole and then waits is stalled all the while", () => {
  const film = new Film().pass(2000, 1).pass(100, 0, { position: 4 }).pass(2900, 0);
  expect(film.meter.stalls).toBe(1);
  expect(film.meter.stallSeconds).toBeCloseTo(3);
});

test("a player that jumps out of a standstill and then waits is still stalled", () => {
  const film = new Film().pass(2000, 1).pass(1000, 0).pass(1000, 0, { position: 60 });
  expect(film.meter.stalled).toBe(true);
  film.pass(1000, 1);
  expect(film.meter.stalls).toBe(1);
  expect(film.meter.stallSeconds).toBeGreaterThan(1.9);
  expect(film.meter.playedSeconds).toBeLessThan(3.1);
});

test("the viewer's seek ends a stall and what follows is startup again", () => {
  const film = new Film().pass(2000, 1).pass(1000, 0).pass(100, 0, { sought: true }).pass(3000, 0, { sought: false, position: 60 });
  expect(film.meter.stalled).toBe(false);
  expect(film.meter.stalls).toBe(1);
  expect(film.meter.stallSeconds).toBeCloseTo(1.1);
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
