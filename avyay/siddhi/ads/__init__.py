"""Ad platforms behind one small interface; money is governed by `avyay.siddhi.budget`, never here."""
