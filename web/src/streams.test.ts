import { afterEach, expect, test, vi } from "vitest";
import { choose, firstVariant, hasEnded, isLive, parseStreams } from "./streams";

const base = "http://publisher.example/?stream=a";

test("streams are read with and without the optional fields", () => {
  const answer = {
    streams: [
      { name: "a", url: "/live/a/index.m3u8", renditions: [{ name: "720p" }], problem: "no segment for 12 s" },
      { name: "b", url: "https://other.example/b.m3u8", problem: null },
    ],
    boxes: { up: 5 },
  };
  expect(parseStreams(answer, base)).toEqual([
    { name: "a", url: "http://publisher.example/live/a/index.m3u8", problem: "no segment for 12 s" },
    { name: "b", url: "https://other.example/b.m3u8", problem: "" },
  ]);
});

test.each([null, 7, "x", [], {}, { streams: null }, { streams: {} }, { streams: [] }])("%j holds no streams", (answer) => {
  expect(parseStreams(answer, base)).toEqual([]);
});

test("entries that cannot be played are left out", () => {
  const streams = [null, 1, {}, { name: "a" }, { name: "", url: "/x" }, { name: "a", url: "javascript:alert(1)" }, { name: "a", url: "http://[" }];
  expect(parseStreams({ streams }, base)).toEqual([]);
  expect(parseStreams({ streams: [{ name: "a", url: "/1" }, { name: "a", url: "/2" }] }, base)).toHaveLength(1);
});

test("the wanted stream is chosen, or the first when none is wanted", () => {
  const streams = parseStreams({ streams: [{ name: "a", url: "/a" }, { name: "b", url: "/b" }] }, base);
  expect(choose(streams, "")?.name).toBe("a");
  expect(choose(streams, "b")?.name).toBe("b");
  expect(choose(streams, "c")).toBeUndefined();
  expect(choose([], "")).toBeUndefined();
});

test("playlists", () => {
  expect(firstVariant("#EXTM3U\r\n#EXT-X-STREAM-INF:BANDWIDTH=1\r\n# note\r\n\r\nlow/index.m3u8\r\n")).toBe("low/index.m3u8");
  expect(firstVariant("#EXTM3U\n#EXTINF:4,\na.ts\n")).toBe("");
  expect(firstVariant("#EXT-X-STREAM-INF:BANDWIDTH=1")).toBe("");
  expect(hasEnded("#EXTM3U\n#EXTINF:4,\na.ts\n#EXT-X-ENDLIST\n")).toBe(true);
  expect(hasEnded("#EXTM3U\n#EXTINF:4,#EXT-X-ENDLIST\na.ts\n")).toBe(false);
});

afterEach(() => vi.unstubAllGlobals());

test.each([
  ["a growing variant", { "/i.m3u8": "#EXT-X-STREAM-INF:BANDWIDTH=1\nv/i.m3u8", "/v/i.m3u8": "#EXTINF:4,\na.ts" }, true],
  ["an ended variant", { "/i.m3u8": "#EXT-X-STREAM-INF:BANDWIDTH=1\nv/i.m3u8", "/v/i.m3u8": "#EXT-X-ENDLIST" }, false],
  ["a growing media playlist", { "/i.m3u8": "#EXTINF:4,\na.ts" }, true],
  ["nothing", {}, false],
])("isLive follows %s", async (_, files: Record<string, string>, want) => {
  vi.stubGlobal("fetch", (url: string) => {
    const text = files[new URL(url).pathname];
    return Promise.resolve(new Response(text ?? "", { status: text === undefined ? 404 : 200 }));
  });
  expect(await isLive("http://publisher.example/i.m3u8")).toBe(want);
});
