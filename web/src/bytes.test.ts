import { expect, test } from "vitest";
import { ByteAccount, hostOf } from "./bytes";

test("bytes are counted by the host that sent them, port included", () => {
  const account = new ByteAccount();
  account.add("http://192.0.2.1:7072/publisher/live/a.ts", 100);
  account.add("http://192.0.2.1:7073/publisher/live/b.ts", 300);
  account.add("http://192.0.2.1:7072/publisher/live/c.ts", 150);
  account.add("http://origin.example/live/d.ts", 50);
  expect(account.byHost()).toEqual({ "192.0.2.1:7073": 300, "192.0.2.1:7072": 250, "origin.example": 50 });
  expect(Object.keys(account.byHost())).toEqual(["192.0.2.1:7073", "192.0.2.1:7072", "origin.example"]);
  expect(account.share("origin.example")).toEqual({ boxes: 2, boxBytes: 550, originBytes: 50 });
  expect(account.share("elsewhere.example")).toEqual({ boxes: 3, boxBytes: 600, originBytes: 0 });
});

test("what has no host or no size is not counted", () => {
  const account = new ByteAccount();
  account.add("", 10);
  account.add("/relative.ts", 10);
  account.add("http://box.example/a.ts", 0);
  account.add("http://box.example/a.ts", Number.NaN);
  expect(account.byHost()).toEqual({});
  expect(account.share("origin.example")).toEqual({ boxes: 0, boxBytes: 0, originBytes: 0 });
});

test("hostOf leaves a default port out, as browsers do", () => {
  expect(hostOf("https://box.example:443/a")).toBe("box.example");
  expect(hostOf("http://[2001:db8::1]:8080/a")).toBe("[2001:db8::1]:8080");
});
