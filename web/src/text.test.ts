import { expect, test } from "vitest";
import { bitrate, byteSize, phrases, seconds, shareText, stallText } from "./text";

test.each([
  [0, 0, 0, ""],
  [5, 97, 3, "97% from 5 boxes, 3% from the origin"],
  [1, 1, 1, "50% from 1 box, 50% from the origin"],
  [2, 10, 0, "all from 2 boxes"],
  [1, 10, 0, "all from 1 box"],
  [0, 0, 10, "all from the origin"],
  [3, 9_999, 1, "over 99% from 3 boxes, under 1% from the origin"],
  [1, 1, 9_999, "under 1% from 1 box, over 99% from the origin"],
])("%i boxes with %i bytes, origin with %i: %s", (boxes, boxBytes, originBytes, want) => {
  expect(shareText({ boxes, boxBytes, originBytes })).toBe(want);
});

test("the whole line", () => {
  expect(
    phrases({
      share: { boxes: 5, boxBytes: 97, originBytes: 3 },
      startupMs: 812,
      stalls: 0,
      stallSeconds: 0,
      latency: 6.24,
      height: 720,
      bitrate: 2_840_000,
    }).join(" · "),
  ).toBe("97% from 5 boxes, 3% from the origin · started in 0.8 s · no stalls · 6.2 s behind live · 720p, 2.8 Mbit/s");
});

test("what is not known is not said", () => {
  const nothing = { share: null, startupMs: null, stalls: 0, stallSeconds: 0, latency: null, height: 0, bitrate: 0 };
  expect(phrases(nothing)).toEqual([]);
  expect(phrases({ ...nothing, height: 480 })).toEqual(["480p"]);
  expect(phrases({ ...nothing, latency: -1 })).toEqual([]);
});

test("quantities", () => {
  expect(stallText(1, 0.42)).toBe("1 stall (0.4 s)");
  expect(stallText(3, 120)).toBe("3 stalls (120 s)");
  expect(seconds(99.94)).toBe("99.9 s");
  expect(seconds(99.96)).toBe("100 s");
  expect(bitrate(640_400)).toBe("640 kbit/s");
  expect(byteSize(512)).toBe("512 B");
  expect(byteSize(4_200)).toBe("4 KB");
  expect(byteSize(4_250_000)).toBe("4.3 MB");
  expect(byteSize(4_250_000_000)).toBe("4.25 GB");
});
